local index, jobs = KEYS[1], KEYS[2]
local id, threshold = ARGV[1], tonumber(ARGV[2])
local score = redis.call('ZSCORE', index, id)
if not score or tonumber(score) >= threshold then return {0, false} end
local payload = redis.call('HGET', jobs, id)
redis.call('ZREM', index, id)
redis.call('HDEL', jobs, id)
return {1, payload}
