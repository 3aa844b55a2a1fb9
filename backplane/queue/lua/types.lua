-- Remove what stands under a name of the queue and is no part of it: each script would fail on it. Loaded before
-- compare.lua.
-- keys  scheduled  leases  workers  dead  gates  queues  heads  serving  finished; of each queue: order  parked
--       pending[:critical|:high|:low]  doorbell  durations
local function remove_unless(kind, keys)
  for _, key in pairs(keys) do
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
  end
end
remove_unless('set', { base .. 'gates', base .. 'queues' })
remove_unless('zset', { base .. 'scheduled', base .. 'leases', base .. 'workers', base .. 'dead', base .. 'heads' })
remove_unless('list', { base .. 'finished' })
remove_unless('hash', { base .. 'serving' })
for _, name in ipairs(all_queues()) do
  local queue = of_queue(name)
  remove_unless('zset', { queue .. 'order', queue .. 'parked' })
  remove_unless('list', { queue .. 'doorbell', queue .. 'durations' })
  for _, list in pairs(LISTS) do remove_unless('list', { queue .. list }) end
end
