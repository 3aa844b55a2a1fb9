-- A user has so many runs and events less. Nothing is taken of a number that is not known, and none goes below 0.
-- KEYS  1 storage:{user}
-- ARGV  1 runs   2 events
for index, name in ipairs({ 'runs', 'events' }) do
  local known = tonumber(redis.call('HGET', KEYS[1], name))
  if known then redis.call('HSET', KEYS[1], name, math.max(known - ARGV[index], 0)) end
end
return 1
