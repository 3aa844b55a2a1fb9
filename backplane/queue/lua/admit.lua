-- Reserve a place for a run that is about to wait.
-- KEYS  1 what all keys of the queue begin with
-- ARGV  1 run id   2 user id   3 priority   4 most of this user that may wait   5 most of all users   6 most of all
--       users of this priority (each 0: any number)   7 reserved for, ms   8 the queue: 5 and 6 count for it alone
-- keys  {run_id}  waiting:{user}  admitted:user:{user}  parked:{gate}; of the queue: admitted:{priority}  order  parked
--       pending[:critical|:high|:low]
-- gives {0}, or {which limit is reached, how many wait, how many may}: 1 the user's own, 2 the priority's, 3 that of all
-- users, 4 the user's share of those two
-- What a user's own cap holds back counts for that user alone: it is in nobody else's way.
local base, run, user, priority = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local most_of_user, most, most_of_tier = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local queue = ARGV[8] == 'default' and base or base .. 'queue:' .. ARGV[8] .. ':'
local LISTS = { ['0'] = 'pending:low', ['1'] = 'pending', ['2'] = 'pending:high', ['3'] = 'pending:critical' }
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local admitted, own_admitted, own = queue .. 'admitted:' .. priority, base .. 'admitted:user:' .. user,
  base .. 'waiting:' .. user
-- One that has expired may still be there: it is removed below, and gives no right.
local reserved = redis.call('ZSCORE', admitted, run)
if reserved and tonumber(reserved) > now then return { 0 } end

redis.call('ZREMRANGEBYSCORE', own_admitted, '-inf', now)
local of_user = redis.call('SCARD', own) + redis.call('ZCARD', own_admitted)
if most_of_user > 0 and of_user >= most_of_user then
  -- A run that was lost on the way (its hash was evicted) must not take a place for ever.
  for _, other in ipairs(redis.call('SRANDMEMBER', own, 100)) do
    local state = redis.call('HGET', base .. other, 'state')
    if state ~= 'queued' and state ~= 'parked' then of_user = of_user - redis.call('SREM', own, other) end
  end
  if of_user >= most_of_user then return { 1, of_user, most_of_user } end
end

if most > 0 or most_of_tier > 0 then
  local of_tier = redis.call('LLEN', queue .. LISTS[priority]) + redis.call('ZCOUNT', queue .. 'parked', priority, priority)
  local all = redis.call('ZCARD', queue .. 'order') + redis.call('ZCOUNT', queue .. 'parked', 0, 3)
  for p in pairs(LISTS) do
    redis.call('ZREMRANGEBYSCORE', queue .. 'admitted:' .. p, '-inf', now)
    local about_to = redis.call('ZCARD', queue .. 'admitted:' .. p)
    all = all + about_to
    if p == priority then of_tier = of_tier + about_to end
  end
  -- The last tenths are kept for higher priorities.
  local room = math.max(math.floor(most * (7 + priority) / 10), 1)
  if most_of_tier > 0 and of_tier >= most_of_tier then return { 2, of_tier, most_of_tier } end
  if most > 0 and all >= room then return { 3, all, room } end
  local part = of_user - redis.call('ZCARD', base .. 'parked:user:' .. priority .. ':' .. user)
  for _, limit in ipairs({ most_of_tier, most }) do
    local share = math.max(math.floor(limit / 2), 1)
    if limit > 0 and part >= share then return { 4, part, share } end
  end
end

local ends = now + tonumber(ARGV[7])
for _, places in ipairs({ admitted, own_admitted }) do
  redis.call('ZADD', places, ends, run)
  redis.call('PEXPIRE', places, ARGV[7])
end
return { 0 }
