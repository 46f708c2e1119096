# frozen_string_literal: true

require "open3"

# For a spec file that needs a gem which the Gemfile does not have and every lane has (bin/lane). Without it the file is run in a
# lane, as one example: it is never left out.
module Lane
  ROOT = File.expand_path("../..", __dir__)
  NAME = "sidekiq-7.3"

  class << self
    # @param gem [String]
    # @param file [String] the spec file that asks
    # @return [Boolean] whether its examples can run in this process
    def has?(gem, file)
      require gem
      true
    rescue LoadError
      # In a lane it is missing, which is an error.
      raise if ENV.key?("LANE_SIDEKIQ")

      run_elsewhere(gem, file)
      false
    end

    private

    def run_elsewhere(gem, file)
      path = file.delete_prefix("#{ROOT}/")
      RSpec.describe path do
        it "passes in the lane #{NAME}, which has the gem #{gem}" do
          output, status = Open3.capture2e("bin/lane", NAME, "rspec", path, chdir: ROOT)
          expect(status.success?).to be(true), output
          expect(output).to match(/^[1-9]\d* examples?, 0 failures$/)
        end
      end
    end
  end
end
