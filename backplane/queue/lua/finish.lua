-- Give up a hold for good: the run is over, or waits for a person.
-- KEYS  1 jobs:{run_id}   2 jobs:leases   3 jobs:durations
-- ARGV  1 run id   2 generation   3 seconds it took, or ''   4 seconds that the job stays
-- gives 1, or 0 when the run was no longer held in this generation
local generation = redis.call('HGET', KEYS[1], 'generation')
if generation and tonumber(generation) ~= tonumber(ARGV[2]) then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
if generation then
  redis.call('HSET', KEYS[1], 'state', 'finished')
  redis.call('EXPIRE', KEYS[1], ARGV[4])
end
if ARGV[3] ~= '' then
  redis.call('LPUSH', KEYS[3], ARGV[3])
  redis.call('LTRIM', KEYS[3], 0, 99)
end
return 1
