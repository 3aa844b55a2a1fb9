-- Give a hold back: the run waits again, at the front, or is scheduled.
-- KEYS  1 jobs:{run_id}   2 jobs:leases   3 its jobs:pending list   4 jobs:scheduled   5 jobs:doorbell
-- ARGV  1 run id   2 generation   3 delay, ms (0: at once)
-- gives 1, or 0 when the run was no longer held in this generation
local job = redis.call('HMGET', KEYS[1], 'state', 'generation')
if job[1] ~= 'running' or tonumber(job[2]) ~= tonumber(ARGV[2]) then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[1], 'crashes', 0)
if tonumber(ARGV[3]) > 0 then
  local clock = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'state', 'scheduled')
  redis.call('ZADD', KEYS[4], clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[3]), ARGV[1])
else
  redis.call('HSET', KEYS[1], 'state', 'queued')
  redis.call('RPUSH', KEYS[3], ARGV[1])
  redis.call('LPUSH', KEYS[5], '1')
  redis.call('LTRIM', KEYS[5], 0, 99)
end
return 1
