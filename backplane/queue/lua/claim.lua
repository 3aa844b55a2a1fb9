-- Take the next runs and write their leases in the same step.
-- KEYS  1 jobs:leases   2 jobs:doorbell   3… the jobs:pending lists, highest priority first
-- ARGV  1 most runs to take   2 lease, ms   3 worker id   4 prefix of a job's key
-- gives run id, user id, priority, generation, crashes of each, in one flat list
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local limit, taken = tonumber(ARGV[1]), {}
local left = 0
for i = 3, #KEYS do
  while #taken < limit * 5 do
    local run = redis.call('RPOP', KEYS[i])
    if not run then break end
    local key = ARGV[4] .. run
    local job = redis.call('HMGET', key, 'state', 'user', 'priority', 'crashes')
    if job[1] == 'queued' then
      local generation = redis.call('HINCRBY', key, 'generation', 1)
      redis.call('HSET', key, 'state', 'running', 'worker', ARGV[3])
      redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), run)
      for _, value in ipairs({ run, job[2], job[3], generation, job[4] or '0' }) do
        taken[#taken + 1] = value
      end
    end
  end
  left = left + redis.call('LLEN', KEYS[i])
end
-- A worker that took the bell may have had no slot for the rest, or died before it came here.
if left == 0 then
  redis.call('DEL', KEYS[2])
elseif redis.call('LLEN', KEYS[2]) == 0 then
  redis.call('LPUSH', KEYS[2], '1')
end
return taken
