-- A worker lives. What it has and Redis does not know of is entered again, what it no longer has is dropped.
-- ARGV  9 JSON, a list of its calls: [number, user, model, run, waited ms, 1 when it has a slot]
--       10 calls with this number or a higher one are newer than that list
-- gives {epoch, number and place of each, place 0 when it has a slot}
keep_lease()
local has = {}
for _, f in ipairs(cjson.decode(ARGV[9])) do
  local id = worker .. '.' .. string.format('%d', f[1])
  has[#has + 1] = { number = f[1], id = id }
  has[id] = true
  if not calls[id] then
    local arrived = now - f[5] * 1000
    add({ id = id, worker = worker, user = f[2], model = f[3], run = f[4], arrived = arrived,
      granted = f[6] == 1 and now or nil })
  end
end
for id, call in pairs(calls) do
  if call.worker == worker and not has[id] and tonumber(string.match(id, '%d+$')) < tonumber(ARGV[10]) then drop(call) end
end
grant()
-- Who was served is remembered for ten minutes: whoever comes back sooner has no new user's privilege.
for user, last in pairs(served) do
  if last < now - 600000000 and (held.user[user] or 0) + (waiting.user[user] or 0) == 0 then
    redis.call('HDEL', key, 'u:' .. user)
  end
end
local answer, found = { epoch }, lines()
for _, mine in ipairs(has) do
  local call = calls[mine.id]
  answer[#answer + 1] = mine.number
  answer[#answer + 1] = call.granted and 0 or place_of(call, found)
end
return answer
