-- A worker's heartbeat: it lives, and so do its leases.
-- KEYS  1 jobs:leases   2 jobs:workers
-- ARGV  1 lease, ms   2 worker id   3 its slots   4 prefix of a job's key
--       then for each run: run id, generation, user id, priority, its pending list
-- gives the ids of the runs that are no longer the worker's
-- A job that Redis forgot is written again: its holder knows it.
local clock = redis.call('TIME')
local ends = clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[1])
redis.call('ZADD', KEYS[2], ends, ARGV[2] .. '|' .. ARGV[3])
local lost = {}
for i = 5, #ARGV, 5 do
  local run, generation = ARGV[i], tonumber(ARGV[i + 1])
  local key = ARGV[4] .. run
  local job = redis.call('HMGET', key, 'state', 'generation')
  if not job[2] then
    redis.call('HSET', key, 'state', 'running', 'generation', generation, 'user', ARGV[i + 2],
      'priority', ARGV[i + 3], 'list', ARGV[i + 4], 'crashes', 0, 'worker', ARGV[2])
    redis.call('ZADD', KEYS[1], ends, run)
  elseif job[1] == 'running' and tonumber(job[2]) == generation then
    redis.call('ZADD', KEYS[1], ends, run)
  else
    lost[#lost + 1] = run
  end
end
return lost
