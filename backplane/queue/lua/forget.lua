-- Take a run that nobody holds out of the queue.
-- ARGV  3 run id   4 seconds that a finished job stays
-- keys  those of places.lua, finished
local job = read(ARGV[3])
if not job or job.state == 'running' or job.state == 'finished' then return 0 end
withdraw(job)
free(job)
redis.call('HSET', base .. job.run, 'state', 'finished', 'status', 'cancelled', 'error', '', 'finished_at', now,
  'places', 0)
redis.call('EXPIRE', base .. job.run, ARGV[4])
redis.call('LPUSH', base .. 'finished', job.run)
keep_last_finished()
ring()
return 1
