-- Take out of a pool's lists what is in the registry no more.
-- KEYS  1 pool:{name}:agents   2 pool:{name}:processes   3 what the keys of agents begin with   4 the same of processes
-- ARGV  1 cursor of the agents, first "0"   2 most of them to look at
-- gives the cursor of the next page ("0": there is none), and how many were taken out
give_way(KEYS[1], 'set')
give_way(KEYS[2], 'zset')
local page = redis.call('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local out = 0
for _, agent in ipairs(page[2]) do
  if redis.call('EXISTS', KEYS[3] .. agent) == 0 then out = out + redis.call('SREM', KEYS[1], agent) end
end
if ARGV[1] == '0' then
  for _, process in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    if redis.call('EXISTS', KEYS[4] .. process) == 0 then out = out + redis.call('ZREM', KEYS[2], process) end
  end
end
return { page[1], out }
