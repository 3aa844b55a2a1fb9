-- Where runs stand.
-- KEYS  1 what all keys of the queue begin with
-- ARGV  run ids
-- keys  {run_id}  order  parked:{gate}
-- gives for each: its state or '', its index in its order, the gate where it is parked (0: none), how many may be taken
local base, standings = KEYS[1], {}
local ready = redis.call('ZCARD', base .. 'order')
for _, run in ipairs(ARGV) do
  local job = redis.call('HMGET', base .. run, 'state', 'gate', 'user', 'priority', 'resource')
  local index, gate = -1, 0
  if job[1] == 'queued' then
    index = redis.call('ZRANK', base .. 'order', run) or -1
  elseif job[1] == 'parked' then
    gate = tonumber(job[2])
    local names = { 'user:' .. job[4] .. ':' .. job[3], 'tier:' .. job[4], 'resource:' .. job[5] }
    index = ready + (redis.call('ZRANK', base .. 'parked:' .. names[gate], run) or 0)
  end
  local n = #standings
  standings[n + 1], standings[n + 2], standings[n + 3] = job[1] or '', index, gate
  standings[n + 4], standings[n + 5] = job[4] or '0', job[5] or ''
end
return standings
