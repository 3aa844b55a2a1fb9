-- What waits in each queue, since when, and who works on it. Costs the same whatever waits.
-- KEYS  1 what all keys of the queue begin with
-- keys  {run_id}  queues  workers  serving  leases; of each queue: pending[:critical|:high|:low]  parked
-- gives for each queue in which runs wait, or that a live worker serves (the default one always): its name, live workers,
--       their slots, its running runs; then for each priority, the highest first: how many may be taken, how many are
--       parked, and the ms since when the one to be taken next may run ('': there is none); in one flat list
local base, DEFAULT = KEYS[1], 'default'
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local found, names = {}, {}
local function of_name(name)
  if not found[name] then
    found[name] = { workers = 0, slots = 0, running = 0 }
    names[#names + 1] = name
  end
  return found[name]
end

of_name(DEFAULT)
for _, name in ipairs(redis.call('SMEMBERS', base .. 'queues')) do of_name(name) end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', base .. 'workers', now, '+inf')) do
  local worker, slots = string.match(member, '^(.*)|(%d+)$')
  for name in string.gmatch(redis.call('HGET', base .. 'serving', worker) or DEFAULT, '[^,]+') do
    local of = of_name(name)
    of.workers, of.slots = of.workers + 1, of.slots + slots
  end
end
for _, run in ipairs(redis.call('ZRANGE', base .. 'leases', 0, -1)) do
  local of = of_name(redis.call('HGET', base .. run, 'queue') or DEFAULT)
  of.running = of.running + 1
end
table.sort(names)
local answer = {}
for _, name in ipairs(names) do
  local queue, of, n = name == DEFAULT and base or base .. 'queue:' .. name .. ':', found[name], #answer
  answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = name, of.workers, of.slots, of.running
  for i, list in ipairs({ 'pending:critical', 'pending:high', 'pending', 'pending:low' }) do
    local priority, run = 4 - i, redis.call('LINDEX', queue .. list, -1)
    local since = run and tonumber(redis.call('HGET', base .. run, 'since'))
    n = #answer
    answer[n + 1] = redis.call('LLEN', queue .. list)
    answer[n + 2] = redis.call('ZCOUNT', queue .. 'parked', priority, priority)
      + redis.call('ZCOUNT', queue .. 'parked', priority + 4, priority + 4)
    answer[n + 3] = since and string.format('%.0f', now - since) or ''
  end
end
return answer
