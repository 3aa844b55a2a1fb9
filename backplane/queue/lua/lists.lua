-- Compare the lists with the jobs and the order; all at once, because a list cannot be asked for a member.
-- ARGV  3 priority   4 how many entries to pass over, from the right   5 most entries to look at; 0: write the lists anew
-- keys  pending[:critical|:high|:low]  order  {run_id}
-- gives 1 when the lists must be written anew, and the runs of this page
local function of_priority(run)
  local job = redis.call('HMGET', base .. run, 'state', 'priority')
  return job[1] == 'queued' and tonumber(job[2])
end

local most = tonumber(ARGV[5])
if most == 0 then
  local by_priority = { [0] = {}, {}, {}, {} }
  for _, run in ipairs(redis.call('ZRANGE', base .. 'order', 0, -1)) do
    local runs = by_priority[of_priority(run)]
    if runs then runs[#runs + 1] = run end
  end
  for priority, list in pairs(PENDING) do
    redis.call('DEL', list)
    local runs = by_priority[priority]
    for i = 1, #runs, 1000 do redis.call('LPUSH', list, unpack(runs, i, math.min(i + 999, #runs))) end
  end
  return { 0, {} }
end
local total = 0
for _, list in pairs(PENDING) do total = total + redis.call('LLEN', list) end
if total ~= redis.call('ZCARD', base .. 'order') then return { 1, {} } end
local priority, from = tonumber(ARGV[3]), tonumber(ARGV[4])
local runs = redis.call('LRANGE', PENDING[priority], -from - most, -from - 1)
for _, run in ipairs(runs) do
  if of_priority(run) ~= priority then return { 1, {} } end
end
return { 0, runs }
