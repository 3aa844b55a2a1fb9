-- A call asks for a slot. Asked again, it stays where it is.
-- ARGV  9 call   10 user   11 model   12 run   13 how long it has waited already, ms
-- gives {epoch, its place, 0 when it has a slot}
keep_lease()
local id = ARGV[9]
if not calls[id] then
  add({ id = id, worker = worker, user = ARGV[10], model = ARGV[11], run = ARGV[12], arrived = now - ARGV[13] * 1000 })
end
asking = id
grant()
return { epoch, calls[id].granted and 0 or place_of(calls[id], lines()) }
