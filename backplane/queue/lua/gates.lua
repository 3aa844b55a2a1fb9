-- Compare those who have places under caps with the jobs, and let in whom there is room for.
-- ARGV  3 names of gates, JSON   4 most runs to let in at each
-- keys  those of places.lua, leases
-- gives how many places were wrong, how many runs were let in, and the runs that are running without a lease
local wrong, entered, unleased = 0, 0, {}
for _, name in ipairs(cjson.decode(ARGV[3])) do
  local i = cap_of(name)
  for _, run in ipairs(redis.call('SMEMBERS', base .. 'held:' .. name)) do
    local job, lease = read(run), redis.call('ZSCORE', base .. 'leases', run)
    local passed = job and gate(i, job) == name
      and (job.state == 'queued' or job.state == 'running' or (job.state == 'parked' and job.gate > i))
    if passed then
      if job.state == 'running' and not lease then unleased[#unleased + 1] = run end
      if not has_place(job, i) then
        take_place(job, i)
        redis.call('HSET', base .. run, 'places', job.places)
        wrong = wrong + 1
      end
    elseif job or not lease then
      redis.call('SREM', base .. 'held:' .. name, run)
      wrong = wrong + 1
    end
  end
  entered = entered + let_in(name, tonumber(ARGV[4]))
end
wake_workers()
return { wrong, entered, unleased }
