-- Takes the GC lock from a holder that is dead: a member of the process set whose capacity key has run out.
-- KEYS: GC lock, process set, the holder's capacity key. ARGV: own process id, TTL in s, the holder's process id.
-- Returns 1 when the lock is ours now, otherwise 0.
if redis.pcall('GET', KEYS[1]) ~= ARGV[3] then return 0 end
if redis.call('SISMEMBER', KEYS[2], ARGV[3]) == 0 or redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
