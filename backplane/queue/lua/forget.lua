-- Take a run that nobody holds out of the queue.
-- KEYS  1 jobs:{run_id}   2 jobs:scheduled   3… the jobs:pending lists
-- ARGV  1 run id
if redis.call('HGET', KEYS[1], 'state') == 'running' then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
for i = 3, #KEYS do
  redis.call('LREM', KEYS[i], 0, ARGV[1])
end
return 1
