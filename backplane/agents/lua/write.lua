-- Write a process and its agents into the registry of their pool, and take out what it has no more.
-- KEYS  1 process:{id}   2 pool:{name}:agents   3 pool:{name}:processes   4 what the keys of agents begin with
-- ARGV  1 process id   2 its fields, JSON [name, value, …]; empty: it ends   3 free places
--       4 its agents, JSON [[id, name, value, …], …]   5 ids of agents that it has no more, JSON   6 lifetime, s
local process = ARGV[1]
give_way(KEYS[2], 'set')
give_way(KEYS[3], 'zset')
redis.call('DEL', KEYS[1])
local fields = cjson.decode(ARGV[2])
if #fields > 0 then
  redis.call('HSET', KEYS[1], unpack(fields))
  redis.call('EXPIRE', KEYS[1], ARGV[6])
  redis.call('ZADD', KEYS[3], ARGV[3], process)
else
  redis.call('ZREM', KEYS[3], process)
end
for _, agent in ipairs(cjson.decode(ARGV[4])) do
  local key = KEYS[4] .. agent[1]
  redis.call('DEL', key)
  redis.call('HSET', key, 'id', unpack(agent))
  redis.call('EXPIRE', key, ARGV[6])
  redis.call('SADD', KEYS[2], agent[1])
end
for _, agent in ipairs(cjson.decode(ARGV[5])) do
  give_way(KEYS[4] .. agent, 'hash')
  -- Another process may have it by now.
  if redis.call('HGET', KEYS[4] .. agent, 'process_id') == process then
    redis.call('DEL', KEYS[4] .. agent)
    redis.call('SREM', KEYS[2], agent)
  end
end
return 1
