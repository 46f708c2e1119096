# frozen_string_literal: true

# Forked children that tell what they saw.
module Children
  # @param leave [Symbol] :exit! leaves at once; :exit as a process does that ends by itself, with finalizers and at_exit blocks
  # @return [Object] what the block returned in the child
  # @raise [RuntimeError] when it raised there, or the child crashed
  def in_child(leave: :exit!)
    reader, writer = IO.pipe
    pid = fork do
      reader.close
      outcome = begin
        [:returned, yield]
      rescue Exception => error # rubocop:disable Lint/RescueException -- the parent is told
        [:raised, error.full_message(highlight: false)]
      end
      writer.write(Marshal.dump(outcome))
      writer.close
      Process.public_send(leave, true)
    end
    writer.close
    answer = reader.read
    reader.close
    Process.wait(pid)
    raise "the child ended with #{$?.inspect}" unless $?.success? && !answer.empty?

    how, what = Marshal.load(answer)
    raise "in the child: #{what}" if how == :raised

    what
  end
end
