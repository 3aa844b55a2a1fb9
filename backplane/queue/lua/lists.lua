-- Compare the lists with the jobs and the order; all at once, because a list cannot be asked for a member.
-- ARGV  3 priority   4 how many entries to pass over, from the right   5 most entries to look at; 0: look at all of them
--         in this one step, and write them anew where they differ   6 the queue
-- keys  {run_id}; of the queue: pending[:critical|:high|:low]  order
-- gives 1 when the lists seem to differ (or did), and the runs of this page
local queue = ARGV[6]
local function of_priority(run)
  local job = redis.call('HMGET', base .. run, 'state', 'priority', 'queue')
  return job[1] == 'queued' and (job[3] or DEFAULT) == queue and tonumber(job[2])
end

local most = tonumber(ARGV[5])
-- The same runs, each once.
local function is_whole(list, runs)
  local wanted, there = {}, redis.call('LRANGE', list, 0, -1)
  if #there ~= #runs then return false end
  for _, run in ipairs(runs) do wanted[run] = true end
  for _, run in ipairs(there) do
    if not wanted[run] then return false end
    wanted[run] = nil
  end
  return true
end

if most == 0 then
  local differs = 0
  local by_priority = { [0] = {}, {}, {}, {} }
  for _, run in ipairs(redis.call('ZRANGE', of_queue(queue) .. 'order', 0, -1)) do
    local runs = by_priority[of_priority(run)]
    if runs then runs[#runs + 1] = run end
  end
  for priority, name in pairs(LISTS) do
    local runs, list = by_priority[priority], of_queue(queue) .. name
    if not is_whole(list, runs) then
      differs = 1
      redis.call('DEL', list)
      for i = 1, #runs, 1000 do redis.call('LPUSH', list, unpack(runs, i, math.min(i + 999, #runs))) end
    end
  end
  return { differs, {} }
end
local total = 0
for _, list in pairs(LISTS) do total = total + redis.call('LLEN', of_queue(queue) .. list) end
if total ~= redis.call('ZCARD', of_queue(queue) .. 'order') then return { 1, {} } end
local priority, from = tonumber(ARGV[3]), tonumber(ARGV[4])
local runs = redis.call('LRANGE', of_queue(queue) .. LISTS[priority], -from - most, -from - 1)
for _, run in ipairs(runs) do
  if of_priority(run) ~= priority then return { 1, {} } end
end
return { 0, runs }
