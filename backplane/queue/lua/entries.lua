-- Compare a page of one structure with the jobs, and take out what does not belong there.
-- ARGV  3 which: "order", "parked", "scheduled", "leases", "parked:{gate}" or "waiting:{user}"
--       4 cursor, first "0"   5 most entries
-- keys  that structure, {run_id}
-- gives the cursor of the next page ("0": there is none), how many were taken out, and the runs that stay
local STATE = { order = 'queued', parked = 'parked', scheduled = 'scheduled', leases = 'running' }
local set = ARGV[3]
local kind, name = string.match(set, '^(%a+):(.*)$')

-- A job that lacks a field has been looked at by compare.lua before: here only what it says of itself counts.
local function belongs(run, state)
  if kind == 'parked' then
    local job = state == 'parked' and read(run)
    return job and gate(job.gate, job) == name
  end
  if kind == 'waiting' then
    return (state == 'queued' or state == 'parked') and redis.call('HGET', base .. run, 'user') == name
  end
  return state == STATE[set]
end

local page = redis.call(kind == 'waiting' and 'SSCAN' or 'ZSCAN', base .. set, ARGV[4], 'COUNT', ARGV[5])
local out, runs = 0, {}
for i = 1, #page[2], kind == 'waiting' and 1 or 2 do
  local run = page[2][i]
  local state = redis.call('HGET', base .. run, 'state')
  -- A lost job is queued again where it stood, or its worker writes it again.
  if belongs(run, state) or (not state and (set == 'order' or set == 'leases')) then
    runs[#runs + 1] = run
  else
    redis.call(kind == 'waiting' and 'SREM' or 'ZREM', base .. set, run)
    out = out + 1
  end
end
return { page[1], out, runs }
