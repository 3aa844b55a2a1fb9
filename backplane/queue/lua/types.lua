-- Remove what stands under a name of the queue and is no part of it: each script would fail on it. Loaded before
-- compare.lua.
-- keys  order  parked  scheduled  leases  workers  dead  gates  pending[:critical|:high|:low]  doorbell  durations
--       finished
local function remove_unless(kind, keys)
  for _, key in pairs(keys) do
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
  end
end
remove_unless('zset', { base .. 'order', base .. 'parked', base .. 'scheduled', base .. 'leases', base .. 'workers',
  base .. 'dead' })
remove_unless('list', PENDING)
remove_unless('list', { base .. 'doorbell', base .. 'durations', base .. 'finished' })
remove_unless('set', { base .. 'gates' })
