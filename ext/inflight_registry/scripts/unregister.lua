-- Takes a request out. KEYS: index, jobs, details index, details. ARGV: registry id.
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
-- pcall: keys of another type are no details.
redis.pcall('ZREM', KEYS[3], ARGV[1])
redis.pcall('HDEL', KEYS[4], ARGV[1])
