-- Empty the queue of a platform that is gone, for another that takes its place.
-- ARGV  3 what `platform` is from now on; the last is ''
-- keys  those of places.lua, leases, finished, dead, workers, serving, leader, held:{gate}, waiting:{user},
--       admitted:user:{user}; of each queue: durations, admitted:{priority}
-- gives how many jobs were removed
local runs, removed = {}, 0
local function add(found)
  for _, run in ipairs(found) do runs[run] = true end
end
for _, set in ipairs({ 'scheduled', 'leases' }) do add(redis.call('ZRANGE', base .. set, 0, -1)) end
for _, name in ipairs(all_queues()) do
  local queue = of_queue(name)
  for _, set in ipairs({ 'order', 'parked' }) do add(redis.call('ZRANGE', queue .. set, 0, -1)) end
  for _, list in pairs(LISTS) do add(redis.call('LRANGE', queue .. list, 0, -1)) end
end
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
for _, name in ipairs(all_queues()) do
  local queue = of_queue(name)
  for priority, list in pairs(LISTS) do redis.call('DEL', queue .. list, queue .. 'admitted:' .. priority) end
  for _, part in ipairs({ 'order', 'parked', 'durations', 'doorbell' }) do redis.call('DEL', queue .. part) end
end
for _, name in ipairs({ 'scheduled', 'leases', 'finished', 'dead', 'workers', 'serving', 'leader', 'gates', 'queues',
  'heads' }) do
  redis.call('DEL', base .. name)
end
redis.call('SET', base .. 'platform', ARGV[3])
return removed
