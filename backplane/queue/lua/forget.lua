-- Take a run that nobody holds out of the queue.
-- ARGV  3 run id
-- keys  those of places.lua, finished
go_on_without_memory()
local job = read(ARGV[3])
if not job or job.state == 'running' or job.state == 'finished' then return 0 end
withdraw(job)
free(job)
redis.call('HSET', base .. job.run, 'state', 'finished', 'status', 'cancelled', 'error', '', 'finished_at', stamp,
  'places', '0')
remember_finished({ job.run })
ring()
return 1
