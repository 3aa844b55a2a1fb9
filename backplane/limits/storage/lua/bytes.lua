-- Add to the bytes of a user, or take from them. Nothing is taken below 0: what is taken was perhaps never counted here,
-- because Redis was emptied, or is taken twice. Below 0 a number comes only by a count, and the next count mends it.
local function add(key, users, user, bytes, known_ms)
  local used = tonumber(redis.call('HGET', key, 'bytes') or 0)
  local change = math.max(bytes, -math.max(used, 0))
  if change == 0 then return used end
  used = redis.call('HINCRBY', key, 'bytes', change)
  if redis.call('TTL', key) < 0 then redis.call('PEXPIRE', key, known_ms) end
  redis.call('SADD', users, user)
  redis.call('PEXPIRE', users, known_ms)
  return used
end

