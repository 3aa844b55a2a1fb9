-- A worker's heartbeat: it lives, and so do its leases.
-- ARGV  3 lease, ms   4 worker id   5 its slots
--       6 JSON [[run id, generation, user id, priority, resource or "", queue (default when left out)], …]
--       7 the queues that it serves, joined by commas; '' when it serves the default one alone
--       8 '1' when it may be the leader
-- keys  those of places.lua, leases, workers, serving, leader
-- gives 1 when this worker is the leader, else 0; then the ids of the runs that are no longer its own
-- A job that Redis has lost, a part of it, or its newest claim (a replica that did not know it became the master) is
-- written again: its worker knows it. The claim of the higher generation is the later one.
go_on_without_memory()
local ends = string.format('%.0f', now + ARGV[3])
redis.call('ZADD', base .. 'workers', ends, ARGV[4] .. '|' .. ARGV[5])
if ARGV[7] ~= '' then redis.call('HSET', base .. 'serving', ARGV[4], ARGV[7]) end
local leads = 0
if ARGV[8] == '1' then
  if redis.call('SET', base .. 'leader', ARGV[4], 'NX', 'PX', ARGV[3]) then
    leads = 1
  elseif redis.call('GET', base .. 'leader') == ARGV[4] then
    redis.call('PEXPIRE', base .. 'leader', ARGV[3])
    leads = 1
  end
end
local lost, renewed = { leads }, {}
for _, c in ipairs(cjson.decode(ARGV[6])) do
  local run, generation = c[1], c[2]
  local key = base .. run
  local job = read(run)
  if not job then
    -- What is left of it may be of a later claim.
    local found = tonumber(redis.call('HGET', key, 'generation'))
    if found and found > generation then job = { generation = found } end
  end
  if not job or job.generation < generation then
    local again = { run = run, user = c[3], priority = c[4], resource = c[5], since = now, places = 0,
      queue = c[6] or DEFAULT }
    if job then
      withdraw(job)
      redis.call('HDEL', key, 'status', 'error', 'finished_at')
      again.since, again.places = job.since, job.places
    end
    for i = 1, GATES do
      local name, cap = gate(i, again)
      if name and cap and cap > 0 then
        redis.call('SADD', base .. 'held:' .. name, run)
        take_place(again, i)
      end
    end
    redis.call('HSET', key, 'state', 'running', 'generation', generation, 'user', again.user,
      'priority', again.priority, 'resource', again.resource, 'crashes', 0, 'worker', ARGV[4],
      'since', string.format('%.3f', again.since), 'score', score_of(again), 'places', again.places,
      'queued_at', stamp, 'claimed_at', stamp)
    if again.queue ~= DEFAULT then redis.call('HSET', key, 'queue', again.queue) end
    job = { state = 'running', generation = generation }
  end
  if job.state == 'running' and job.generation == generation then
    renewed[#renewed + 1] = ends
    renewed[#renewed + 1] = run
  else
    lost[#lost + 1] = run
  end
end
if #renewed > 0 then redis.call('ZADD', base .. 'leases', unpack(renewed)) end
return lost
