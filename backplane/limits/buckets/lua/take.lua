-- Take an estimate from all buckets, or from none. Who lacks tokens is noted as the first at the bucket unless another
-- waits there for longer, and none that came later is served before it: else small calls would keep out a large one.
-- ARGV  own+1 ticket   own+2 how long it has waited, ms   own+3 estimate   own+4 how long it is the first unless it asks
--       again, ms   own+5 run, '' is none   own+6 how long the run's wait is kept for others to see, ms
-- keys  waits:{run_id}   done:{ticket}
-- gives ms until there may be enough, as text; "0": taken
local ticket, estimate, run = ARGV[own + 1], tonumber(ARGV[own + 3]), ARGV[own + 5]
local arrived, first_for = now - ARGV[own + 2], tonumber(ARGV[own + 4])
if is_done(ticket) then return '0' end
-- A rounding error must not cost a wait.
local ROUNDING = 0.000001
-- When the first at a bucket is late.
local SOON = 10
local wait = 0
for _, b in ipairs(buckets) do
  b.lacks = math.min(estimate, b.burst) - level(b)
  b.theirs = b.first and b.first ~= ticket and b.ends > now and b.arrived <= arrived
  if b.lacks > ROUNDING then wait = math.max(wait, b.lacks / b.rate) end
  if b.theirs then wait = math.max(wait, b.due - now, SOON) end
end
if wait == 0 then
  for _, b in ipairs(buckets) do
    no_longer_first(b, ticket)
    take(b, estimate)
  end
  done(ticket)
  if run ~= '' then redis.call('HDEL', KEYS[1] .. 'waits:' .. run, ticket) end
  return '0'
end
for _, b in ipairs(buckets) do
  if b.lacks <= ROUNDING then
    -- What it waits for is another bucket.
    no_longer_first(b, ticket)
  elseif not b.theirs then
    redis.call('HSET', b.key, 'first', ticket, 'arrived', text(arrived), 'due', text(now + b.lacks / b.rate),
      'until', text(now + first_for))
  end
end
if run ~= '' then
  local waits = KEYS[1] .. 'waits:' .. run
  redis.call('HSET', waits, ticket, cjson.encode({ what = 'tokens', since = string.format('%.0f', arrived * 1000),
    ['until'] = string.format('%.0f', (now + ARGV[own + 6]) * 1000), seconds = wait / 1000 }))
  redis.call('PEXPIRE', waits, ARGV[own + 6])
end
return text(wait)
