-- Leases orphans to the collector that calls: their score becomes a fresh heartbeat, which every version of the gem leaves
-- alone, and which grows stale again if the collector dies.
-- KEYS: index, jobs, the collector's own capacity key, details index, details, then the capacity keys of the processes concerned.
-- ARGV: cut-off in ms, shift of the clock in ms, most payload bytes to return, 1 if the collector must be alive itself, then for
-- each id: the id, and the position of its process's capacity key in KEYS.
-- Returns how many ids were looked at (-1: none, the collector's own proof of life is gone), the lease, the leased ids and
-- payloads alternately, and the ids that had no payload (removed: there is nothing to recover).
if ARGV[4] == '1' and redis.call('EXISTS', KEYS[3]) == 0 then return {-1, ARGV[1], {}, {}} end
local index, jobs, cutoff = KEYS[1], KEYS[2], tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2]
-- Never below the cut-off, so that a sweep cannot claim its own leases.
local lease = string.format('%.0f', math.max(now, cutoff))
local limit, bytes, looked = tonumber(ARGV[3]), 0, 0
local leased, ghosts = {}, {}
for i = 5, #ARGV, 2 do
  local id = ARGV[i]
  local score = redis.call('ZSCORE', index, id)
  if score and tonumber(score) < cutoff and redis.call('EXISTS', KEYS[tonumber(ARGV[i + 1])]) == 0 then
    bytes = bytes + redis.call('HSTRLEN', jobs, id)
    if #leased > 0 and bytes > limit then break end
    local payload = redis.call('HGET', jobs, id)
    if payload then
      redis.call('ZADD', index, 'XX', lease, id)
      leased[#leased + 1] = id
      leased[#leased + 1] = payload
    else
      redis.call('ZREM', index, id)
      redis.pcall('ZREM', KEYS[4], id)
      redis.pcall('HDEL', KEYS[5], id)
      ghosts[#ghosts + 1] = id
    end
  end
  looked = looked + 1
end
return {looked, lease, leased, ghosts}
