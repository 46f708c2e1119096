# frozen_string_literal: true

module Demo
  # The demo cannot go on. The message is all that is shown.
  class Failure < StandardError
    class << self
      # @param child [Child] whose log tells more; it is read now, since the folder goes away
      # @return [Failure]
      def of(child, message)
        new("#{message}\nThe end of the log of #{child.name}:\n#{child.log_tail}")
      end
    end
  end
end
