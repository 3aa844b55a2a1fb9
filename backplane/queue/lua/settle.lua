-- End claims: the run is over (or waits for a person), waits again where it stood, waits for its next attempt, or is
-- claimed by a worker that the queue does not know.
-- ARGV  3 JSON [[run id, generation, "finished" | "handed back" | "postponed" | "set aside" | "disowned", status, error,
--         duration in s or null, delay in ms, 1 when it is dead], …]
-- keys  those of places.lua, leases, finished, dead; of each queue: durations
-- A job in another generation, or over already, is passed over.
go_on_without_memory()
local over, took, released = {}, {}, {}
for _, s in ipairs(cjson.decode(ARGV[3])) do
  local run, outcome = s[1], s[3]
  local key, job = base .. run, read(run)
  if job and job.generation == s[2] and job.state ~= 'finished' then
    released[#released + 1] = run
    -- Its lease may have ended, and nobody has taken it yet.
    if job.state ~= 'running' then withdraw(job) end
    if outcome == 'handed back' then
      redis.call('HSET', key, 'crashes', '0')
      put_back(job)
    elseif outcome == 'postponed' or outcome == 'set aside' then
      free(job)
      local due = string.format('%.0f', now + s[7])
      redis.call('HSET', key, 'state', 'scheduled', 'places', '0', 'due', due)
      if outcome == 'postponed' then redis.call('HSET', key, 'crashes', '0') end
      redis.call('ZADD', base .. 'scheduled', due, run)
    elseif outcome == 'disowned' then
      free(job)
      redis.call('DEL', key)
    else
      free(job)
      redis.call('HSET', key, 'state', 'finished', 'status', s[4], 'error', s[5], 'finished_at', stamp, 'places', '0')
      over[#over + 1] = run
      if s[6] ~= cjson.null then
        -- There are as many queues of agents as agents, so all share one list.
        local queue = string.sub(job.queue, 1, 6) == 'agent:' and 'agent:*' or job.queue
        took[queue] = took[queue] or {}
        table.insert(took[queue], s[6])
      end
      if s[8] == 1 then redis.call('ZADD', base .. 'dead', now / 1000, run) end
    end
  end
end
if #released > 0 then redis.call('ZREM', base .. 'leases', unpack(released)) end
if #over > 0 then remember_finished(over) end
for queue, seconds in pairs(took) do
  local durations = of_queue(queue) .. 'durations'
  redis.call('LPUSH', durations, unpack(seconds))
  redis.call('LTRIM', durations, 0, 99)
  if queue ~= DEFAULT then redis.call('EXPIRE', durations, 604800) end
end
wake_workers()
return #released
