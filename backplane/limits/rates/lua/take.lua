-- Takes permits of a rate limit (a token bucket, kept as the time at which it is full again).
-- KEYS  1 rates:{name}
-- ARGV  1 ms until a permit is back   2 how many the full bucket holds   3 the least to take   4 the most to take
-- Returns {taken, "0"}, or {0, ms until the least can be taken}.
local interval, burst, need, want = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
-- No fuller than full and no emptier than empty, also where another machine's clock has counted.
local full_at = math.max(now, math.min(tonumber(redis.call('GET', KEYS[1]) or 0), now + burst * interval))

-- A rounding error must not cost a permit.
local left = math.floor(burst - (full_at - now) / interval + 0.000001)
if left < need then
  return { 0, string.format('%.3f', math.max(full_at - now - (burst - need) * interval, 0.001)) }
end
local taken = math.min(left, want)
full_at = full_at + taken * interval
redis.call('SET', KEYS[1], string.format('%.3f', full_at), 'PX', math.ceil(full_at - now))
return { taken, '0' }
