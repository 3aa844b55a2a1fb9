-- How long the queue is and since when its head waits, by priority, the highest first. Costs the same whatever waits.
-- KEYS  1 what all keys of the queue begin with
-- keys  {run_id}  pending[:critical|:high|:low]  parked
-- gives for each priority: how many may be taken, how many are parked, and the ms since when the one to be taken next
--       may run ('': there is none), in one flat list
local base = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local depths = {}
for i, pending in ipairs({ 'pending:critical', 'pending:high', 'pending', 'pending:low' }) do
  local priority, n = 4 - i, #depths
  local run = redis.call('LINDEX', base .. pending, -1)
  local since = run and tonumber(redis.call('HGET', base .. run, 'since'))
  depths[n + 1] = redis.call('LLEN', base .. pending)
  depths[n + 2] = redis.call('ZCOUNT', base .. 'parked', priority, priority)
  depths[n + 3] = since and string.format('%.0f', now - since) or ''
end
return depths
