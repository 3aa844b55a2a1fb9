-- Let wait again what fell between the chairs: ended leases, attempts that are due, and parked runs for which there is
-- room (a cap was raised).
-- ARGV  3 most runs of each kind
-- keys  those of places.lua, leases, workers, serving, dead
-- gives the numbers of ended leases, due attempts and runs let in, the ms until the next of the first two ('': none), and
-- run id, worker id and crashes of each ended lease, in one flat list
go_on_without_memory()
local lost, due, entered, losses = 0, 0, 0, {}
for _, run in ipairs(redis.call('ZRANGEBYSCORE', base .. 'leases', '-inf', now, 'LIMIT', 0, ARGV[3])) do
  redis.call('ZREM', base .. 'leases', run)
  local job = read(run)
  if job and job.state == 'running' then
    local crashes = redis.call('HINCRBY', base .. run, 'crashes', 1)
    put_back(job)
    losses[3 * lost + 1], losses[3 * lost + 2] = run, redis.call('HGET', base .. run, 'worker') or ''
    losses[3 * lost + 3] = crashes
    lost = lost + 1
  end
end
for _, run in ipairs(redis.call('ZRANGEBYSCORE', base .. 'scheduled', '-inf', now, 'LIMIT', 0, ARGV[3])) do
  redis.call('ZREM', base .. 'scheduled', run)
  local job = read(run)
  if job and job.state == 'scheduled' then
    job.since, job.places = now, 0
    enter(job, 1)
    due = due + 1
  end
end
if redis.call('EXISTS', base .. 'gates') == 1 then
  for _, name in ipairs(redis.call('SRANDMEMBER', base .. 'gates', 50)) do
    entered = entered + let_in(name, tonumber(ARGV[3]))
  end
end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', base .. 'workers', '-inf', now)) do
  redis.call('ZREM', base .. 'workers', worker)
  redis.call('HDEL', base .. 'serving', (string.gsub(worker, '|%d+$', '')))
end
wake_workers()
local next_end = ''
for _, set in ipairs({ 'leases', 'scheduled' }) do
  local first = redis.call('ZRANGE', base .. set, 0, 0, 'WITHSCORES')
  if first[2] then next_end = math.min(tonumber(first[2]) - now, next_end == '' and math.huge or next_end) end
end
return { lost, due, entered, tostring(next_end), losses }
