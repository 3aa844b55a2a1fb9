-- Let runs wait, each once.
-- ARGV  3 jobs, JSON [[run id, user id, priority, resource or "", generation that the database has, since,
--         queue (default when left out)], …]
--         since: ms since the epoch, for a job that Redis has lost and that goes where it stood; 0: it comes now
--       4 1 when places are reserved
-- keys  those of places.lua, admitted:user:{user}, dead, leases; of each queue: admitted:{priority}
-- gives for each 1, or 0 when it waits, is scheduled or is running already
local answers = {}

-- Take what is left of a lost job out of the structures. Where it still has its place in the order, it keeps that.
local function strip(job, since)
  local queue = of_queue(job.queue)
  local score = redis.call('ZSCORE', queue .. 'order', job.run)
  for i = 1, GATES do
    local name = gate(i, job)
    if name then
      local key = base .. 'parked:' .. name
      score = score or redis.call('ZSCORE', key, job.run)
      redis.call('ZREM', key, job.run)
    end
  end
  redis.call('ZREM', queue .. 'parked', job.run)
  redis.call('ZREM', base .. 'scheduled', job.run)
  redis.call('ZREM', base .. 'leases', job.run)
  return math.min(score and score + ahead(job) or since, now)
end

for i, new in ipairs(cjson.decode(ARGV[3])) do
  local run, key = new[1], base .. new[1]
  local old = redis.call('HMGET', key, 'state', 'generation')
  local state = old[1]
  if new[6] > 0 and not read(run) then state = nil end
  if state == 'queued' or state == 'parked' or state == 'running' or state == 'scheduled' then
    answers[i] = 0
  else
    local generation = math.max(tonumber(old[2] or 0), new[5])
    -- In the order given, also where a whole batch has one time.
    local job = { run = run, user = new[2], priority = new[3], resource = new[4], since = now + i * 0.004, places = 0,
      queue = new[7] or DEFAULT }
    if new[6] > 0 then job.since = strip(job, new[6]) end
    if state then
      redis.call('HDEL', key, 'status', 'error', 'finished_at', 'claimed_at', 'worker')
    end
    if job.queue ~= DEFAULT then redis.call('HSET', key, 'queue', job.queue) end
    enter(job, 1, 'user', job.user, 'priority', job.priority, 'resource', job.resource, 'generation', generation,
      'crashes', '0', 'queued_at', stamp)
    if ARGV[4] == '1' then
      redis.call('ZREM', of_queue(job.queue) .. 'admitted:' .. job.priority, run)
      redis.call('ZREM', base .. 'admitted:user:' .. job.user, run)
    end
    if new[5] > 0 then redis.call('ZREM', base .. 'dead', run) end
    answers[i] = 1
  end
end
wake_workers()
return answers
