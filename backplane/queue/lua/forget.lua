-- Take a run out of the queue that no worker has: none that is running under a lease.
-- ARGV  3 run id   4 what became of it, for those who look at finished jobs; '' when there is no such run
-- keys  those of places.lua, finished, leases
go_on_without_memory()
local run = ARGV[3]
local job = read(run)
if not job then
  -- What is left of a lost one. Its worker, where it has one, writes it again.
  if redis.call('ZSCORE', base .. 'leases', run) then return 0 end
  redis.call('ZREM', base .. 'scheduled', run)
  for _, name in ipairs(all_queues()) do
    for _, part in ipairs({ 'order', 'parked' }) do redis.call('ZREM', of_queue(name) .. part, run) end
  end
  return redis.call('DEL', base .. run)
end
local is_held = job.state == 'running' and redis.call('ZSCORE', base .. 'leases', run)
if is_held or job.state == 'finished' then return 0 end
withdraw(job)
free(job)
if ARGV[4] == '' then
  redis.call('DEL', base .. run)
else
  redis.call('HSET', base .. run, 'state', 'finished', 'status', ARGV[4], 'error', '', 'finished_at', stamp,
    'places', '0')
  remember_finished({ run })
end
wake_workers()
return 1
