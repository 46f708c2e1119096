-- Takes a request out. KEYS: index, jobs. ARGV: registry id.
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
