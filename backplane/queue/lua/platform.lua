-- Whose queue this is: loaded before every script that changes it, so that no process takes another platform's jobs.
-- ARGV  last: what `platform` must be, "format id" (backplane/queue/platform.py); '' when nobody has asked yet
-- keys  platform
do
  local theirs, ours = redis.call('GET', KEYS[1] .. 'platform'), ARGV[#ARGV]
  if ours ~= '' then
    if not theirs then
      redis.pcall('SET', KEYS[1] .. 'platform', ours) -- a full Redis refuses it: the next script does it
    elseif theirs ~= ours then
      return redis.error_reply('NOTOURS ' .. theirs)
    end
  end
end
