-- Empty the queue of a platform that is gone, for another that takes its place.
-- ARGV  3 what `platform` is from now on; the last is ''
-- keys  those of places.lua, leases, finished, dead, durations, workers, leader, admitted:{priority}, held:{gate}
--       waiting:{user}  admitted:user:{user}
-- gives how many jobs were removed
local runs, removed = {}, 0
local function add(found)
  for _, run in ipairs(found) do runs[run] = true end
end
for _, set in ipairs({ 'order', 'parked', 'scheduled', 'leases' }) do add(redis.call('ZRANGE', base .. set, 0, -1)) end
for _, list in pairs(PENDING) do add(redis.call('LRANGE', list, 0, -1)) end
add(redis.call('LRANGE', base .. 'finished', 0, -1))
for run in pairs(runs) do
  local job = read(run)
  for i = 1, job and GATES or 0 do
    local name = gate(i, job)
    if name then redis.call('DEL', base .. 'held:' .. name, base .. 'parked:' .. name) end
  end
  if job then redis.call('DEL', base .. 'waiting:' .. job.user, base .. 'admitted:user:' .. job.user) end
  removed = removed + redis.call('DEL', base .. run)
end
for _, name in ipairs(redis.call('SMEMBERS', base .. 'gates')) do
  redis.call('DEL', base .. 'held:' .. name, base .. 'parked:' .. name)
end
for _, list in pairs(PENDING) do redis.call('DEL', list) end
for priority = 0, 3 do redis.call('DEL', base .. 'admitted:' .. priority) end
for _, name in ipairs({ 'order', 'parked', 'scheduled', 'leases', 'finished', 'dead', 'durations', 'workers', 'leader',
  'gates', 'doorbell' }) do
  redis.call('DEL', base .. name)
end
redis.call('SET', base .. 'platform', ARGV[3])
return removed
