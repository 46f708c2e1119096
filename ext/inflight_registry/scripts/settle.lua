-- Removes an entry whose job has been handed on, if it is still ours, and counts the recovery.
-- KEYS: index, jobs, the job's recovery counter. ARGV: registry id, lease, TTL of the counter in s (0: do not count).
-- Returns 1 when removed, 0 when the lease is no longer ours, -1 when the entry is gone already.
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score then return -1 end
if tonumber(score) ~= tonumber(ARGV[2]) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
-- pcall: a counter that cannot count must not bring the removed entry's job back.
if ARGV[3] ~= '0' and redis.pcall('INCR', KEYS[3]) == 1 then redis.call('EXPIRE', KEYS[3], ARGV[3]) end
return 1
