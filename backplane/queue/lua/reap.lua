-- Queue again what fell between the chairs: ended leases (at the front) and attempts that are due.
-- KEYS  1 jobs:leases   2 jobs:scheduled   3 jobs:workers   4 jobs:doorbell
-- ARGV  1 most runs of each kind   2 prefix of a job's key
-- gives the number of ended leases and of due attempts
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function again(set, state, push)
  local count = 0
  for _, run in ipairs(redis.call('ZRANGEBYSCORE', set, '-inf', now, 'LIMIT', 0, ARGV[1])) do
    redis.call('ZREM', set, run)
    local key = ARGV[2] .. run
    local job = redis.call('HMGET', key, 'state', 'list')
    if job[1] == state then
      if state == 'running' then redis.call('HINCRBY', key, 'crashes', 1) end
      redis.call('HSET', key, 'state', 'queued')
      redis.call(push, job[2], run)
      redis.call('LPUSH', KEYS[4], '1')
      count = count + 1
    end
  end
  return count
end
local lost = again(KEYS[1], 'running', 'RPUSH')
local due = again(KEYS[2], 'scheduled', 'LPUSH')
redis.call('LTRIM', KEYS[4], 0, 99)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
return { lost, due }
