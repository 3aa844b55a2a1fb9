-- Remove what stands under a name of the queue and is no part of it: each script would fail on it.
-- keys  order  parked  scheduled  leases  workers  dead  gates  pending[:critical|:high|:low]  doorbell  durations
--       finished
-- gives how many were removed
local removed = 0
local function check(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then
    redis.call('DEL', key)
    removed = removed + 1
  end
end
for _, set in ipairs({ 'order', 'parked', 'scheduled', 'leases', 'workers', 'dead' }) do check(base .. set, 'zset') end
for _, list in pairs(PENDING) do check(list, 'list') end
for _, list in ipairs({ 'doorbell', 'durations', 'finished' }) do check(base .. list, 'list') end
check(base .. 'gates', 'set')
return removed
