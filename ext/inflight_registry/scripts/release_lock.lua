-- Deletes the GC lock if it is ours. KEYS: GC lock. ARGV: own process id.
-- Returns 1 when it was deleted, 0 when another holds it, -1 when nobody does.
-- pcall: a key of another type is not ours.
local holder = redis.pcall('GET', KEYS[1])
if not holder then return -1 end
if holder ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
