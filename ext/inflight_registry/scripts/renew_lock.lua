-- Gives the GC lock its full TTL again if it is ours. KEYS: GC lock. ARGV: own process id, TTL in s.
-- Returns 1 when it is ours, otherwise 0.
-- pcall: a key of another type is no lock of ours, and a sweep goes on without it.
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('EXPIRE', KEYS[1], ARGV[2])
