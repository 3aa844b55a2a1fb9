-- Reserve a place for a run that is about to wait.
-- KEYS  1 what all keys of the queue begin with
-- ARGV  1 run id   2 priority   3 most that may wait, 0: any number   4 the same of its priority   5 reserved for, ms
-- keys  pending[:critical|:high|:low]  parked  admitted:{priority}
-- gives 1, or 0 when there is no room
local base, run, priority, most, most_of_tier = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local admitted = base .. 'admitted:' .. priority
if redis.call('ZSCORE', admitted, run) then return 1 end
local all, of_tier = 0, 0
for p, list in pairs({ ['0'] = 'pending:low', ['1'] = 'pending', ['2'] = 'pending:high', ['3'] = 'pending:critical' }) do
  redis.call('ZREMRANGEBYSCORE', base .. 'admitted:' .. p, '-inf', now)
  local waiting = redis.call('LLEN', base .. list) + redis.call('ZCOUNT', base .. 'parked', p, p)
    + redis.call('ZCARD', base .. 'admitted:' .. p)
  all = all + waiting
  if p == priority then of_tier = waiting end
end
if (most > 0 and all >= most) or (most_of_tier > 0 and of_tier >= most_of_tier) then return 0 end
redis.call('ZADD', admitted, now + tonumber(ARGV[5]), run)
redis.call('PEXPIRE', admitted, ARGV[5])
return 1
