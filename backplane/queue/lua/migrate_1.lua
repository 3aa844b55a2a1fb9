-- From the layout before layouts had numbers: jobs that wait stood in the lists alone, without order, places and times.
-- ARGV  3 what `platform` must be before   4 what it is afterwards; the last is ''
-- keys  those of places.lua, leases
-- gives 1, or 0 when `platform` is something else
if (redis.call('GET', base .. 'platform') or '') ~= ARGV[3] then return 0 end
local at, old = 0, {}
local function is_old(run)
  local job = redis.call('HMGET', base .. run, 'state', 'since')
  return job[1] and not job[2]
end
for priority = 3, 0, -1 do
  local list = base .. LISTS[priority]
  local runs = redis.call('LRANGE', list, 0, -1)
  for i = #runs, 1, -1 do
    if is_old(runs[i]) then
      redis.call('LREM', list, -1, runs[i])
      old[#old + 1] = runs[i]
    end
  end
end
for _, set in ipairs({ 'leases', 'scheduled' }) do
  for _, run in ipairs(redis.call('ZRANGE', base .. set, 0, -1)) do
    if is_old(run) then old[#old + 1] = run end
  end
end
for _, run in ipairs(old) do
  redis.call('HSETNX', base .. run, 'resource', '')
  redis.call('HDEL', base .. run, 'list')
  redis.call('PERSIST', base .. run)
  local job = read(run)
  if job then
    at = at + 0.004
    job.since = now + at
    if job.state == 'queued' then
      enter(job, 1, 'queued_at', stamp)
    else
      redis.call('HSET', base .. run, 'since', string.format('%.3f', job.since), 'score', score_of(job), 'places', '0')
    end
  end
end
wake_workers()
redis.call('SET', base .. 'platform', ARGV[4])
return 1
