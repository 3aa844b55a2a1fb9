-- Let a run wait, once.
-- KEYS  1 jobs:{run_id}   2 its jobs:pending list   3 jobs:doorbell
-- ARGV  1 run id   2 user id   3 priority   4 generation that the database has
-- gives 1, or 0 when the run waits, is scheduled or is held already
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'queued' or state == 'running' or state == 'scheduled' then
  return 0
end
local generation = math.max(tonumber(redis.call('HGET', KEYS[1], 'generation') or 0), tonumber(ARGV[4]))
redis.call('HSET', KEYS[1], 'state', 'queued', 'user', ARGV[2], 'priority', ARGV[3], 'generation', generation,
  'list', KEYS[2], 'crashes', 0)
redis.call('PERSIST', KEYS[1])
redis.call('LPUSH', KEYS[2], ARGV[1])
redis.call('LPUSH', KEYS[3], '1')
redis.call('LTRIM', KEYS[3], 0, 99)
return 1
