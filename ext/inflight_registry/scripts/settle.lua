-- Removes an entry whose job has been handed on, if it is still ours, and counts the recovery.
-- KEYS: index, jobs, the job's recovery counter, details index, details. ARGV: registry id, lease, TTL of the counter in s (0: do not count).
-- Returns 1 when removed, 0 when the lease is no longer ours, -1 when the entry is gone already.
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score then return -1 end
if tonumber(score) ~= tonumber(ARGV[2]) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
-- pcall: keys of another type are no details.
redis.pcall('ZREM', KEYS[4], ARGV[1])
redis.pcall('HDEL', KEYS[5], ARGV[1])
if ARGV[3] ~= '0' then
  -- pcall: a counter that cannot count must not bring the removed entry's job back. It begins anew, so that poison is contained.
  local count = redis.pcall('INCR', KEYS[3])
  if count == 1 or type(count) ~= 'number' then redis.call('SET', KEYS[3], 1, 'EX', ARGV[3]) end
end
return 1
