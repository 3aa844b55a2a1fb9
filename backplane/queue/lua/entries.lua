-- Compare a page of one structure with the jobs, and take out what does not belong there.
-- ARGV  3 which: "order", "parked", "scheduled", "leases", "parked:{gate}", "waiting:{user}", "queue:{name}:order" or
--         "queue:{name}:parked"
--       4 cursor, first "0"   5 most entries
-- keys  that structure, {run_id}
-- gives the cursor of the next page ("0": there is none), how many were taken out, and the runs that stay
local STATE = { order = 'queued', parked = 'parked', scheduled = 'scheduled', leases = 'running' }
local set = ARGV[3]
local kind, name = string.match(set, '^(%a+):(.*)$')
local part = set
if kind == 'queue' then name, part = string.match(name, '^(.*):(%a+)$') end
local of = (part == 'order' or part == 'parked') and (kind == 'queue' and name or DEFAULT)

-- A job that lacks a field has been looked at by compare.lua before: here only what it says of itself counts.
local function belongs(run, state, queue)
  if kind == 'parked' then
    local job = state == 'parked' and read(run)
    return job and gate(job.gate, job) == name
  end
  if kind == 'waiting' then
    return (state == 'queued' or state == 'parked') and redis.call('HGET', base .. run, 'user') == name
  end
  return state == STATE[part] and (not of or (queue or DEFAULT) == of)
end

local page = redis.call(kind == 'waiting' and 'SSCAN' or 'ZSCAN', base .. set, ARGV[4], 'COUNT', ARGV[5])
local out, runs = 0, {}
for i = 1, #page[2], kind == 'waiting' and 1 or 2 do
  local run = page[2][i]
  local job = redis.call('HMGET', base .. run, 'state', 'queue')
  -- A lost job is queued again where it stood, or its worker writes it again.
  if belongs(run, job[1], job[2]) or (not job[1] and (part == 'order' or part == 'leases')) then
    runs[#runs + 1] = run
  else
    redis.call(kind == 'waiting' and 'SREM' or 'ZREM', base .. set, run)
    out = out + 1
  end
end
return { page[1], out, runs }
