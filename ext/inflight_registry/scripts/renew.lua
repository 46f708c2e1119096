-- Renews leases. KEYS: index. ARGV: cut-off in ms, shift of the clock in ms, the present lease, then the registry ids.
-- Returns the new lease, then the ids that still were ours and now have it.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2]
local lease = string.format('%.0f', math.max(now, tonumber(ARGV[1])))
local kept = {lease}
for i = 4, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) == tonumber(ARGV[3]) then
    redis.call('ZADD', KEYS[1], 'XX', lease, ARGV[i])
    kept[#kept + 1] = ARGV[i]
  end
end
return kept
