-- Which of these processes live, and with what capacity? Members whose capacity key is gone leave the process set in the same
-- step, and a GC lock that one of them held goes with it: once it is no member, nobody knows the holder to be dead.
-- KEYS: process set, GC lock, then each process's capacity key. ARGV: the process ids, in the same order.
-- Returns for each process its capacity as text, or nil when it does not live.
local lock = redis.pcall('GET', KEYS[2])
local found = {}
for i = 1, #ARGV do
  if redis.call('EXISTS', KEYS[i + 2]) == 1 then
    local capacity = redis.pcall('GET', KEYS[i + 2])
    -- A key of another type still proves life, but tells no number.
    found[i] = type(capacity) == 'string' and capacity or ''
  else
    found[i] = false
    -- Who is no member may never have pinged, which proves nothing.
    if redis.call('SREM', KEYS[1], ARGV[i]) == 1 and lock == ARGV[i] then redis.call('DEL', KEYS[2]) end
  end
end
return found
