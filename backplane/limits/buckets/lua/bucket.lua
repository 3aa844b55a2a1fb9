-- What the scripts of the token buckets share; each is loaded with this before it. A bucket is kept as the time at which
-- it is full again, so that nothing has to be written while it fills; the further ahead that lies, the more it owes.
-- KEYS  1 what all keys of the models begin with, "models:" behind the prefix   2 on: the buckets, models:tokens:{name}
-- ARGV  1 now, ms, '' is Redis's clock   2 on: tokens a second and burst of each bucket, then what the script names
-- fields of a bucket  full_at   first: the ticket that is served next   arrived: since when that waits   due: when it
--       is served at the latest   until: it is not waited for after that; times in ms
local clock = redis.call('TIME')
local now = tonumber(ARGV[1]) or clock[1] * 1000 + clock[2] / 1000
-- Behind the buckets come the script's own arguments.
local own = 2 * #KEYS - 1

-- Scripts are sent again where a connection broke.
local function is_done(id) return redis.call('EXISTS', KEYS[1] .. 'done:' .. id) == 1 end
local function done(id) redis.call('SET', KEYS[1] .. 'done:' .. id, '1', 'PX', 60000) end

local function text(time) return string.format('%.6f', time) end

local buckets = {}
for i = 2, #KEYS do
  local f = redis.call('HMGET', KEYS[i], 'full_at', 'first', 'arrived', 'due', 'until')
  buckets[i - 1] = { key = KEYS[i], rate = ARGV[2 * i - 2] / 1000, burst = tonumber(ARGV[2 * i - 1]),
    full_at = math.max(tonumber(f[1] or 0), now), first = f[2], arrived = tonumber(f[3] or 0),
    due = tonumber(f[4] or 0), ends = tonumber(f[5] or 0) }
end

local function level(bucket) return bucket.burst - (bucket.full_at - now) * bucket.rate end

-- Takes, or gives back where `tokens` is negative: no more than the bucket holds.
local function take(bucket, tokens)
  local full_at = math.max(bucket.full_at + tokens / bucket.rate, now)
  redis.call('HSET', bucket.key, 'full_at', text(full_at))
  -- Somewhat longer than it fills, so that who waits for a full one stays the first.
  redis.call('PEXPIRE', bucket.key, math.ceil(full_at - now) + 5000)
end

local function no_longer_first(bucket, ticket)
  if bucket.first == ticket then redis.call('HDEL', bucket.key, 'first', 'arrived', 'due', 'until') end
end
