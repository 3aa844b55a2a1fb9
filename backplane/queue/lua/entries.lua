-- Compare a page of one structure with the jobs, and take out what does not belong there.
-- ARGV  3 which: "order", "parked", "scheduled", "leases", or "parked:{gate}"   4 cursor, first "0"   5 most entries
-- keys  that structure, {run_id}
-- gives the cursor of the next page ("0": there is none), how many were taken out, and the runs that stay
local set, state = ARGV[3], 'parked'
if set == 'order' then state = 'queued' elseif set == 'scheduled' then state = set end
if set == 'leases' then state = 'running' end
local name = string.match(set, '^parked:(.*)$')
local page = redis.call('ZSCAN', base .. set, ARGV[4], 'COUNT', ARGV[5])
local out, runs = 0, {}
for i = 1, #page[2], 2 do
  local run = page[2][i]
  local job = read(run)
  local belongs = job and job.state == state and (not name or gate(job.gate, job) == name)
  -- A lost job is queued again where it stood, or its holder writes it again.
  if belongs or (not job and (set == 'order' or set == 'leases')) then
    runs[#runs + 1] = run
  else
    redis.call('ZREM', base .. set, run)
    out = out + 1
  end
end
return { page[1], out, runs }
